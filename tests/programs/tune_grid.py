"""Ray Tune: a small grid, each trial in a placement group."""

import tempfile

from ray import tune

from report import main


def trial(config):
    tune.report({"loss": (config["x"] - 2) ** 2 + config["y"]})


def program():
    with tempfile.TemporaryDirectory() as directory:
        results = tune.Tuner(
            trial,
            param_space={"x": tune.grid_search([1, 2]), "y": tune.grid_search([0, 1])},
            tune_config=tune.TuneConfig(metric="loss", mode="min"),
            run_config=tune.RunConfig(storage_path=directory, verbose=0),
        ).fit()
    assert len(results) == 4 and results.num_errors == 0, results
    best = results.get_best_result()
    assert best.config == {"x": 2, "y": 0}, best.config
    return f"best of {len(results)} trials: {best.config}"


if __name__ == "__main__":
    main(program)
