"""What the report draws."""

import numpy as np
import pytest

from shardsieve.report.figures import shares


@pytest.mark.parametrize(("classes", "by_share"), [(10, False), (1000, True)])
def test_many_classes_are_drawn_from_the_least_kept_to_the_most(classes, by_share):
    kept = np.linspace(0, 1, classes).tolist()
    names = [str(one) for one in range(classes)]
    assert (shares(names, kept, 0.5) == shares(names, kept[::-1], 0.5)) is by_share
