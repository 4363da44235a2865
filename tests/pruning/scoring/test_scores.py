from copra.pruning.scoring.scores import COLUMNS, score_row, score_table


def test_a_table_has_one_row_a_unit():
    rows = [
        score_row("cosine", 0.5, "layer", 3),
        score_row("angular", 0.25, "block", 2, length=4),
        score_row("gradient", 1, "head", 1, 7),
        score_row("gradient_token", 2, "neuron", 0, 77),
    ]
    table = score_table(rows, "train", 12)
    assert tuple(table.columns) == COLUMNS
    assert table.values.tolist() == [
        ["layer", 3, 3, 1, "cosine", 0.5, "train", 12],
        ["block", 2, 2, 4, "angular", 0.25, "train", 12],
        ["head", 1, 7, 1, "gradient", 1.0, "train", 12],
        ["neuron", 0, 77, 1, "gradient_token", 2.0, "train", 12],
    ]


def test_an_empty_table_keeps_its_columns():
    assert tuple(score_table([]).columns) == COLUMNS
