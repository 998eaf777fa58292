"""`model.fit` that is distributed over devices and machines, and survives being killed.

`fit` is a whole run in one call. Its parts, for programs that want more than that:

    make_strategy, worker_of      the devices and machines, and which of them this process is
    RunFolder                     configuration, checkpoints, history, results and models of a run
    Splits, train                 the batches, and the training loop over them
    prepare, evaluate             a model's scores on other batches, over all devices
    agree, refusals_shared        several workers: started alike, refused together
    claim_in_turn                 a `RunFolder` of theirs
    read_results, read_history    what a run's folder says
    best_model                    the best model's file, and the results that belong to it
"""

from keras_bnrnn.fit.distribution import (
    STRATEGIES,
    Worker,
    agree,
    make_strategy,
    refusals_shared,
    rejoined_after_losing_a_worker,
    rows_of_worker,
    worker_of,
)
from keras_bnrnn.fit.errors import FitError, Stopped
from keras_bnrnn.fit.loop import Splits, evaluate, prepare, train
from keras_bnrnn.fit.precision import PRECISIONS, scaled
from keras_bnrnn.fit.run import fit
from keras_bnrnn.fit.run_folder import RunFolder, claim_in_turn
from keras_bnrnn.fit.tables import best_model, read_history, read_results
from keras_bnrnn.fit.tensorboard import TensorBoard

__all__ = [
    "PRECISIONS",
    "STRATEGIES",
    "FitError",
    "RunFolder",
    "Splits",
    "Stopped",
    "TensorBoard",
    "Worker",
    "agree",
    "best_model",
    "claim_in_turn",
    "evaluate",
    "fit",
    "make_strategy",
    "prepare",
    "read_history",
    "read_results",
    "refusals_shared",
    "rejoined_after_losing_a_worker",
    "rows_of_worker",
    "scaled",
    "train",
    "worker_of",
]
