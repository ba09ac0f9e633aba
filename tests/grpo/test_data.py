import pytest

from fgrpo_secure.errors import DataError
from fgrpo_secure.grpo.data import column_names, load_examples
from tests.grpo.files import write

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}]
CHAT = [{"role": "user", "content": "SECRET"}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_prompts(tmp_path, suffix):
    examples = load_examples(write(tmp_path / f"d{suffix}", ROWS))
    assert [e.prompt for e in examples] == ["1+1=", "2+2="]
    assert [str(e.columns["answer"]) for e in examples] == ["2", "4"]


PLAIN = [{"prompt": f"p{i}", "answer": i, "when": "2024-01-02"} for i in range(4)]
ODD_ROWS = [
    {"prompt": "odd", "answer": 5.5, "when": "2024-01-02"},
    {"prompt": "odd", "answer": "none", "when": "yesterday"},
    {"prompt": "odd", "answer": None, "when": None},
    {"prompt": "odd", "answer": 1, "when": "2024-01-02", "more": [1]},
    {"prompt": "odd"},
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("odd", ODD_ROWS)
def test_a_row_of_another_kind_changes_no_other_row(tmp_path, suffix, odd):
    alone = load_examples(write(tmp_path / f"alone{suffix}", PLAIN))
    mixed = load_examples(write(tmp_path / f"mixed{suffix}", [*PLAIN, odd]))
    assert repr(mixed[: len(alone)]) == repr(alone)


@pytest.mark.parametrize("odd", ["abc", "", "5.5", "2024-01-02"])
def test_a_cell_of_another_kind_changes_no_other_cell(tmp_path, odd):
    rows = [{"prompt": "1", "code": "007"}, {"prompt": "2", "code": "8"}]
    alone = load_examples(write(tmp_path / "alone.csv", rows))
    mixed = load_examples(
        write(tmp_path / "mixed.csv", [*rows, {"prompt": "3", "code": odd}])
    )
    assert repr(mixed[:2]) == repr(alone)
    assert [example.columns["code"] for example in mixed] == ["007", "8", odd]


def test_a_ragged_table_is_refused_with_the_line(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("prompt,answer\nSECRET,1\nSECRET,1,2\n")
    with pytest.raises(DataError, match="line 3 has 3 cells") as caught:
        load_examples(str(path))
    assert "SECRET" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_said_so(tmp_path):
    for suffix in (".csv", ".json", ".jsonl"):
        path = tmp_path / f"d{suffix}"
        path.write_bytes(b"prompt\n\xff\xfe\n")
        with pytest.raises(DataError, match="cannot be read"):
            load_examples(str(path))


def test_nothing_private_stays_in_a_cache(tmp_path, monkeypatch):
    scratch, home = tmp_path / "scratch", tmp_path / "home"
    scratch.mkdir()
    home.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home)
    load_examples(write(tmp_path / "d.parquet", ROWS))
    assert not list(scratch.iterdir())
    assert not list(home.rglob("*.arrow"))


def test_a_prompt_of_digits_is_text(tmp_path):
    source = write(tmp_path / "d.csv", [{"prompt": "007", "answer": "1"}])
    assert load_examples(source)[0].prompt == "007"


def test_a_conversation_is_read_as_messages(tmp_path):
    source = write(tmp_path / "d.jsonl", [{"prompt": CHAT, "answer": 1}])
    (example,) = load_examples(source)
    assert example.prompt == ({"role": "user", "content": "SECRET"},)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "SECRET"}, {"prompt": 5}], "row 2"),
        ([{"prompt": "SECRET"}, {"prompt": None}], "row 2"),
        ([{"prompt": CHAT}, {"prompt": []}], "row 2"),
        ([{"prompt": CHAT}, {"prompt": [{"role": "user"}]}], "row 2"),
        ([{"question": "SECRET"}], "no column 'prompt'"),
        ([{"prompt": "SECRET", "completions": "x"}], "'completions'"),
    ],
)
def test_bad_rows_are_named_by_file_and_number_without_their_text(
    tmp_path, rows, words, caplog, capfd
):
    source = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_examples(source)
    assert "bad.jsonl" in caught.value.what
    assert words in caught.value.what
    assert caught.value.exit_code == 3
    assert "SECRET" not in str(caught.value) + caplog.text + str(capfd.readouterr())


HEADLESS = [
    ("d.csv", "4711,John Smith HIV+,yes\n4712,Jane,no\n"),
    ("d.csv", "John Smith HIV+,promptly\n4712,Jane\n"),
    ("d.jsonl", '{"John Smith HIV+": 1, "question": "a"}\n'),
    ("d.json", '[{"John Smith HIV+": 1}]'),
]


@pytest.mark.parametrize(("name", "text"), HEADLESS)
def test_a_missing_column_is_told_without_the_names_that_stand_in_its_place(
    tmp_path, name, text
):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="no column 'prompt'") as caught:
        load_examples(str(tmp_path / name))
    shown = str(caught.value)
    for cell in ("4711", "John", "HIV", "yes", "promptly", "question"):
        assert cell not in shown
    assert "`fgrpo check` lists the columns for their owner" in caught.value.fix
    assert ("first line may not name its columns" in shown) == (name == "d.csv")


@pytest.mark.parametrize("spelt", ["Prompt", "prompts", " prompt", "PROMPT", "pro_mpt"])
def test_another_spelling_of_a_missing_column_is_said(tmp_path, spelt):
    source = write(tmp_path / "d.jsonl", [{"ward": "7", spelt: "1"}])
    if spelt == "prompts":
        (tmp_path / "d.jsonl").write_text('{"Prompts": "a", "ward": "7"}\n')
        spelt = "Prompts"
    with pytest.raises(DataError) as caught:
        load_examples(source)
    assert f"'{spelt}' comes close" in caught.value.fix
    assert "ward" not in str(caught.value)


def test_the_columns_are_listed_to_whoever_asks_for_them_and_fit_a_line(tmp_path):
    rows = [{"b": 1, "a\n\ud800": 2}, {"c": 3}]
    assert column_names(write(tmp_path / "d.jsonl", rows)) == ("a\\n\\ud800", "b")


HALVES = [
    "SECRET \ud800",
    [{"role": "user", "content": "SECRET \udfff"}],
    [{"role": "user", "content": "a"}, {"role": "\ud800", "content": "SECRET"}],
]


@pytest.mark.parametrize("prompt", HALVES)
def test_a_prompt_that_no_tokenizer_can_read_is_named_by_its_row(tmp_path, prompt):
    source = write(tmp_path / "d.jsonl", [{"prompt": "a"}, {"prompt": prompt}])
    with pytest.raises(DataError) as caught:
        load_examples(source)
    assert caught.value.what == "d.jsonl, row 2: the prompt is not valid Unicode."
    assert "SECRET" not in str(caught.value)


def test_malformed_lines_are_named_without_their_text(tmp_path, capfd):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": SECRET}\n')
    with pytest.raises(DataError, match="line 2 is not JSON") as caught:
        load_examples(str(path))
    assert caught.value.__cause__ is None
    assert "SECRET" not in str(caught.value) + str(capfd.readouterr())


def test_a_missing_or_empty_or_unknown_file_is_said_so(tmp_path):
    with pytest.raises(DataError, match="no file"):
        load_examples(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match=r"empty\.csv is empty"):
        load_examples(str(tmp_path / "empty.csv"))
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(DataError, match="no known kind"):
        load_examples(str(tmp_path / "text.txt"))


def test_further_columns_can_be_required(tmp_path):
    source = write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(DataError, match="no column 'patient'"):
        load_examples(source, required_columns=("prompt", "patient"))
