"""The README's table of models."""

import model_table


def test_readme_holds_the_current_table():
    assert model_table.main(['--check']) == 0
