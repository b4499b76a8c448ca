"""The history's columns are the loop's own; a method's terms may not take their names."""

import pytest
from tiny import make_data, make_mlp

from kdlab.distillers import LabelSmoothing
from kdlab.training import fit


@pytest.mark.parametrize("name", ["loss", "lr", "epoch"])
def test_a_term_with_the_name_of_a_column_is_refused(name):
    class Greedy(LabelSmoothing):
        def forward(self, student, teacher, targets):
            return {name: super().forward(student, teacher, targets)["hard"]}

    data = make_data()
    with pytest.raises(ValueError, match=f"terms: {name} is a column of the history"):
        fit(make_mlp(data), data, Greedy(), epochs=1)
