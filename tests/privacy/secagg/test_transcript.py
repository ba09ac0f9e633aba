from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.crypto import Label
from privacy.secagg.transcript import Entry, phase_entries, transcript_hash

entries = st.lists(
    st.builds(Entry, st.text(), st.text(), st.text(), st.binary()), max_size=6
)


@settings(deadline=None)
@given(entries, entries)
def test_different_transcripts_have_different_hashes(left, right):
    assert (transcript_hash(left) == transcript_hash(right)) == (left == right)


def test_a_removed_moved_or_altered_entry_changes_the_hash():
    lines = [Entry("phase", name, "sent", name.encode()) for name in "abc"]
    usual = transcript_hash(lines)
    for other in (
        lines[:2],
        [lines[1], lines[0], lines[2]],
        [*lines, lines[0]],
        [*lines[:2], Entry("phase", "c", "sent", b"d")],
        [*lines[:2], Entry("phase", "c", "blamed", b"c")],
    ):
        assert transcript_hash(other) != usual


def test_a_phase_says_of_everybody_what_came():
    lines = phase_entries(
        Label.ADVERT,
        ["b", "a", "c", "d"],
        {"a": b"message", "d": b"first"},
        {"b": "lied", "x": "came uninvited", "d": "sent two"},
    )
    assert [(line.party, line.outcome, line.evidence) for line in lines] == [
        ("a", "sent", b"message"),
        ("b", "blamed", b"lied"),
        ("c", "missing", b""),
        ("d", "sent", b"first"),
        ("d", "blamed", b"sent two"),
        ("x", "blamed", b"came uninvited"),
    ]
    assert all(line.phase == Label.ADVERT for line in lines)
