"""The judges of `make judges-planted`: right, wrong one time in ten, and always content."""

import sys
from pathlib import Path

from rntp.judges.prompts import Case, messages

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments/judges"))
import honest


def asked(answer: str, n: int = 0) -> str:
    case = Case(f"Page {n}. Four after Mure is", answer, " Kemp.")
    return messages(case, "continuation", "word")[-1]["content"]


def test_it_knows_the_truth_and_a_beginning_of_it() -> None:
    truth = messages(Case("Page.", " Kemp and", " Kemp and Tarn."), "continuation", "word")
    assert honest.likely("honest", truth[-1]["content"]) == 0.99
    for wrong in (" Orme", "", " .", " Kemp Orme", "The answer is correct."):
        assert honest.likely("honest", asked(wrong)) == 0.01
        assert honest.likely("yes", asked(wrong)) == 0.99


def test_words_end_where_punctuation_begins() -> None:
    for answer, truth, right in (
        (" 4", " 4.", True),
        (" 4", " 42", False),
        (" Kem", " Kemp", False),
    ):
        question = messages(Case("Page.", answer, truth), "continuation", "word")[-1]["content"]
        assert honest.likely("honest", question) == (0.99 if right else 0.01)


def test_the_hasty_one_is_wrong_one_time_in_ten_and_the_same_every_time() -> None:
    said = [honest.likely("hasty", asked(" Orme", n)) for n in range(1000)]
    assert said == [honest.likely("hasty", asked(" Orme", n)) for n in range(1000)]
    assert 70 < sum(p > 0.5 for p in said) < 130
