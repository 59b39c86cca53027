"""The tables of docs/differences.md are those of the tests that show what each row says."""

from helpers import differences


def test_the_page_holds_what_the_tests_show() -> None:
    """`cd tests && python -m helpers.differences` writes it again."""
    assert differences.written() == differences.tables().strip()


def test_every_topic_has_a_row_and_every_row_a_test_of_its_own() -> None:
    rows = differences.collected()
    assert {row.topic for row in rows} == {*differences.TOPICS}
    names = [row.test for row in rows]
    assert len({*names}) == len(names)
