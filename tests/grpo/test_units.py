"""Rows become units: by prompt, or by the column that says whose a row is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrpo_secure.errors import DataError
from fgrpo_secure.grpo.data import Example, load_examples
from fgrpo_secure.grpo.units import subject_id, unit_id, units, units_by_column
from tests.grpo.files import write


def test_units_are_distinct_prompts_and_the_first_row_is_kept(tmp_path):
    rows = [
        {"prompt": "a", "answer": "1"},
        {"prompt": "b", "answer": "2"},
        {"prompt": "a", "answer": "3"},
    ]
    found = units(load_examples(write(tmp_path / "d.jsonl", rows)))
    assert [unit.examples[0].columns["answer"] for unit in found.values()] == ["1", "2"]
    assert all(len(unit.examples) == 1 for unit in found.values())
    assert list(found) == [unit.id for unit in found.values()]
    assert next(iter(found)) == unit_id("a")


def test_a_unit_id_tells_plain_text_from_a_conversation():
    chat = ({"role": "user", "content": "a"},)
    turned = ({"content": "a", "role": "user"},)
    ids = {unit_id("a"), unit_id(chat), unit_id('[["user","a"]]'), unit_id("\ud800")}
    assert len(ids) == 4
    assert unit_id(chat) == unit_id(turned)
    # printf 'fgrpo-secure unit v1\0["plain","a"]' | sha256sum
    assert unit_id("a") == (
        "a3076be630ddbe87c4a0ca1f8ce27ee272f06f8f50dc476a828576ba4828c3f3"
    )


# Units by a column.

COLUMN = "patient_id"


def visit(who, prompt, **columns):
    return {"prompt": prompt, COLUMN: who, **columns}


def by_patient(path, rows, most=10):
    examples = load_examples(write(path, rows))
    return units_by_column(examples, COLUMN, max_prompts=most, name=path.name)


def prompts(unit):
    return [example.prompt for example in unit.examples]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_all_rows_with_one_value_are_one_unit(tmp_path, suffix):
    rows = [visit("a", "1"), visit("b", "2"), visit("a", "3"), visit("b", "1")]
    found = by_patient(tmp_path / f"d{suffix}", rows)
    assert list(found) == [subject_id(COLUMN, who) for who in ("a", "b")]
    assert [sorted(prompts(unit)) for unit in found.values()] == [
        ["1", "3"],
        ["1", "2"],
    ]
    assert all(name == unit.id for name, unit in found.items())


def test_the_column_stays_among_the_columns_of_its_row(tmp_path):
    (unit,) = by_patient(tmp_path / "d.csv", [visit("a", "1", answer="2")]).values()
    assert unit.examples[0].columns == {COLUMN: "a", "answer": "2"}


def test_a_prompt_that_a_unit_has_twice_counts_once_and_its_first_row_is_kept(tmp_path):
    rows = [visit("a", "1", n=1), visit("b", "1", n=2), visit("a", "1", n=3)]
    found = by_patient(tmp_path / "d.jsonl", rows)
    kept = [
        example.columns["n"] for unit in found.values() for example in unit.examples
    ]
    assert kept == [1, 2]


def test_numbers_may_be_ids_and_are_not_the_text_of_their_digits(tmp_path):
    found = by_patient(tmp_path / "d.jsonl", [visit(7, "1"), visit(8, "2")])
    assert list(found) == [subject_id(COLUMN, 7), subject_id(COLUMN, 8)]
    ids = {
        subject_id(COLUMN, 7),
        subject_id(COLUMN, "7"),
        subject_id(COLUMN, " 7"),
        subject_id("ward", "7"),
        unit_id("7"),
    }
    assert len(ids) == 5
    # printf 'fgrpo-secure unit v1\0["column","patient_id","7"]' | sha256sum
    assert subject_id(COLUMN, "7") == (
        "ea080a2030a2c39f8d8c10c1f2ae9a31c17b825b85772b5f58cb702d58d3afa5"
    )


def test_ids_that_differ_in_spaces_or_case_are_not_merged(tmp_path):
    rows = [visit(who, "1") for who in ("a", "A", " a", "a ")]
    assert len(by_patient(tmp_path / "d.jsonl", rows)) == 4


_ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("0123456789")), max_size=30
)


def _found(pairs, most):
    examples = [Example(prompt, {COLUMN: who}) for who, prompt in pairs]
    return units_by_column(examples, COLUMN, max_prompts=most, name="d")


@given(_ROWS.filter(bool), st.integers(1, 4), st.randoms())
def test_which_prompts_count_is_the_units_own_affair(pairs, most, shuffling):
    found = _found(pairs, most)
    mixed = list(pairs)
    shuffling.shuffle(mixed)
    shuffled = _found(mixed, most)
    for who in {who for who, _ in pairs}:
        name = subject_id(COLUMN, who)
        own = [(other, prompt) for other, prompt in pairs if other == who]
        # Neither the others nor the order of rows decide, and the bound holds.
        assert prompts(found[name]) == prompts(_found(own, most)[name])
        assert prompts(found[name]) == prompts(shuffled[name])
        assert len(found[name].examples) == min(most, len(set(own)))


def test_units_that_share_prompts_do_not_all_keep_the_same_ones():
    pairs = [(str(who), str(prompt)) for who in range(20) for prompt in range(4)]
    kept = {prompts(unit)[0] for unit in _found(pairs, 1).values()}
    assert kept == {"0", "1", "2", "3"}


def test_a_larger_bound_keeps_what_a_smaller_one_keeps():
    pairs = [("a", str(prompt)) for prompt in range(9)]
    all_of_them = prompts(*_found(pairs, 9).values())
    for most in range(1, 9):
        assert prompts(*_found(pairs, most).values()) == all_of_them[:most]


NOT_SAID = [
    ([visit("a", "1"), visit(None, "2")], "row 2: 'patient_id' is empty"),
    ([visit("a", "1"), visit("", "2")], "row 2: 'patient_id' is empty"),
    ([visit("a", "1"), visit(" ", "2")], "row 2: 'patient_id' is empty"),
    ([{"prompt": "1"}, visit("a", "2")], "row 1: 'patient_id' is empty"),
    ([visit("", str(i)) for i in range(5)], "rows 1, 2, 3 and 2 more"),
    ([visit("SECRET", "1"), visit(0.5, "2")], "row 2: 'patient_id' is neither"),
    ([visit("SECRET", "1"), visit(["SECRET"], "2")], "row 2: 'patient_id' is neither"),
    ([visit(1, "1"), visit(True, "2")], "row 2: 'patient_id' is neither"),
    (
        [visit(7, "1"), visit("SECRET", "2"), visit(8, "3")],
        "text in row 2 and a number",
    ),
    ([visit(7, "1"), visit("SECRET", "2"), visit(8, "3")], "a number in rows 1, 3"),
    ([{"prompt": "1", "ward": "SECRET"}], "no column 'patient_id'"),
]


@pytest.mark.parametrize(("rows", "words"), NOT_SAID)
def test_a_row_that_does_not_say_whose_it_is_is_named_without_its_text(
    tmp_path, rows, words
):
    with pytest.raises(DataError) as caught:
        by_patient(tmp_path / "bad.jsonl", rows)
    assert "bad.jsonl" in caught.value.what
    assert words in caught.value.what
    assert caught.value.fix
    assert caught.value.exit_code == 3
    assert "SECRET" not in str(caught.value)


def test_an_empty_cell_of_a_table_is_no_id(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(f"{COLUMN},prompt\na,1\n,2\n")
    with pytest.raises(DataError, match="row 2"):
        units_by_column(load_examples(str(path)), COLUMN, max_prompts=1, name="d.csv")


def test_a_missing_column_is_named_without_those_that_are_there(tmp_path):
    rows = [{"prompt": "1", "ward": "x", "Patient ID": "7"}, {"prompt": "2"}]
    with pytest.raises(DataError, match="no column 'patient_id'") as caught:
        by_patient(tmp_path / "d.jsonl", rows)
    assert "'Patient ID' comes close" in caught.value.fix
    assert "ward" not in str(caught.value)


@pytest.mark.parametrize("cell", ["patient_17", "patient", "J. Smith, patient_id 7"])
def test_a_cell_is_not_taken_for_another_spelling_of_the_unit(tmp_path, cell):
    (tmp_path / "d.csv").write_text(f'prompt,"{cell}"\n1,x\n')
    examples = load_examples(str(tmp_path / "d.csv"))
    with pytest.raises(DataError) as caught:
        units_by_column(examples, COLUMN, max_prompts=1, name="d.csv")
    assert cell not in caught.value.fix
    assert "comes close" not in caught.value.fix
    assert "Its first line may not name its columns" in caught.value.fix
