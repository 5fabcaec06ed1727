"""A model that labels shards, in the thread that runs all of its torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from annotator.job.shard import Shard
from annotator.job.stages.predict import predict_shard
from annotator.labels.schema import Columns
from annotator.photos.crops import Side
from annotator.runtime.malloc import keep_freed_memory
from annotator.runtime.precision import CPU_BATCH, Precision

if TYPE_CHECKING:
    from annotator.model.checkpoint_file import CheckpointFile
    from annotator.predictor import Predictor


class ShardPredictor:
    """One model on one device, which labels shard by shard.

    A separate thread runs all of torch. Ray creates an actor in one thread and calls it in another. OpenMP would keep a
    team of threads for each, more than there are cores, and both would sleep between layers (a third slower).
    """

    def __init__(
        self,
        file: CheckpointFile,
        threads: int,
        batch_size: int | None,
        side: Side,
        samples: int = 0,
        precision: Precision = "float32",
        columns: Columns = "all",
    ) -> None:
        """Load the model."""
        self._how = side, samples, columns
        self._thread = ThreadPoolExecutor(1)
        self._predictor = self._thread.submit(self._start, file, threads, batch_size, precision).result()

    @staticmethod
    def _start(file: CheckpointFile, threads: int, batch_size: int | None, precision: Precision) -> Predictor:
        import torch

        from annotator.model.checkpoint import checkpoint_of
        from annotator.predictor import Predictor

        keep_freed_memory()
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        predictor = Predictor(checkpoint_of(file), device, batch_size or CPU_BATCH, precision)
        if device.type == "cuda":  # on a CPU the first photos would only wait for it
            if batch_size is None:
                predictor.find_batch_size()
            predictor.warm_up()
        return predictor

    def __call__(self, shard: Shard) -> Shard:
        """Label the hands of a shard."""
        return self._thread.submit(predict_shard, self._predictor, shard, *self._how).result()
