from spherecf.evaluation import signature
from spherecf.evaluation.results import input_facts


def test_values_cannot_break_the_signature() -> None:
    line = signature("x/tenfold", view="a|b\nc", gone=None)
    assert line.startswith("x/tenfold|view:a/b c|spherecf:") and "gone" not in line


def test_differing_and_missing_facts_are_shown_per_side() -> None:
    left, right = (
        {"view": "clean", "data": "a" * 64, "flip": "sum"},
        {"view": "clean", "data": "sha256:" + "c" * 64},
    )
    facts = input_facts(left, right, "e" * 64, "e" * 64, "f" * 64)
    assert facts["view"] == "clean" and facts["data"] == "sha256:aaaaaaaaaaaa+sha256:cccccccccccc"
    assert (
        facts["flip"] == "sum+?" and facts["align"] is None and facts["embeddings"] == "sha256:eeeeeeeeeeee"
    )
    assert facts["pairs"] == "sha256:ffffffffffff"
