"""What a page prints: numbers that a reader can read, and sentences that fit how many names there are."""
import pytest

from hirm.tables import bracketed, digits, listed, p_value


@pytest.mark.parametrize("value, text", [(-0.0, "0.00"), (-1e-300, ">-0.0001"), (1e-6, "<0.0001"), (-1e-6, ">-0.0001"), (0.000123, "0.000123"), (-0.00012, "-0.000120")])
def test_a_zero_has_no_sign_and_nothing_is_printed_as_a_row_of_zeros(value, text):
    assert digits(value) == text


@pytest.mark.parametrize("p, text", [(0.0, "<0.001"), (0.00099, "<0.001"), (0.001, "0.001"), (1.0, "1.000")])
def test_no_p_value_is_nought(p, text):
    assert p_value(p) == text


def test_an_interval_stands_beside_its_estimate():
    assert bracketed(0.9468, 0.9247, 0.9695) == bracketed(0.9468, 0.9247, 0.9695, 0.03, False) == "0.947 [0.925, 0.970]"


@pytest.mark.parametrize("names, text", [([], "Nobody won."), (["irm"], "irm alone won."), (["irm", "hirm"], "irm and hirm won, 2 of them."),
                                         (["irm", "hirm", "vrex"], "irm, hirm and vrex won, 3 of them.")])
def test_a_sentence_has_a_form_for_none_one_and_many(names, text):
    assert listed(names, "Nobody won.", "{names} alone won.", "{names} won, {n} of them.") == text
