"""Run the jobs of an import with Apache Beam: on this machine, or on Dataflow, Flink or Spark by Beam's own options.

The jobs are those of `write.Pool` and give the same files. They exchange them through the directory of the import, so
that directory and the input have to be on a file system that every worker can read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from unihetero_jax.data.ingest import pieces
from unihetero_jax.data.ingest.process_pool import Message, Progress
from unihetero_jax.errors import UsageError


class Beam:
    """Runs every batch of jobs as one pipeline.

    Args:
        options: Options as on the command line, such as ``--runner=FlinkRunner``; by default Beam's direct runner.

    Raises:
        UsageError: Beam is not installed, or does not accept an option.
    """

    def __init__(self, options: Sequence[str]):
        # Optional, as everywhere in this file.
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise UsageError("--beam needs Apache Beam: `pip install 'unihetero_jax[prepare]'`") from error
        try:
            self._options = PipelineOptions(list(options))
            # Beam searches for its runner here: a typing error should not wait for the input to be listed.
            apache_beam.Pipeline(options=self._options)
        except (ImportError, ValueError, SystemExit) as error:
            raise UsageError(f"Apache Beam does not accept {' '.join(options)}: {error}") from error

    def __call__(
        self,
        task: pieces.Task,
        jobs: Sequence[Message],
        progress: Progress,
        done: Callable[[int, Message], None],
        inherited: Sequence[int],
    ) -> None:
        """See `write.Execute`; Beam reports the progress itself."""
        del progress, inherited
        import apache_beam

        listed = [json.dumps(job) for job in jobs]
        pipeline = apache_beam.Pipeline(options=self._options)
        _ = (
            pipeline
            | "jobs" >> apache_beam.Create(listed)
            # Otherwise the runner would do all of them where they were listed.
            | "spread" >> apache_beam.Reshuffle()
            | "work" >> apache_beam.ParDo(_do_fn()(task.message()))
        )
        pipeline.run().wait_until_finish()
        for number, job in enumerate(jobs):
            result = pieces.result(task.directory, job)
            if result is None:
                raise UsageError(
                    f"Beam's workers wrote nothing that this machine can read: expected {task.directory} to be on a "
                    "file system that they share"
                )
            done(number, result)


def _do_fn() -> Any:
    """Return the class that Beam runs."""
    import apache_beam

    class Work(apache_beam.DoFn):
        """Does jobs, each a line of JSON."""

        def __init__(self, opening: Message):
            self._opening = opening

        def setup(self) -> None:
            self._work = pieces.work(self._opening)

        def process(self, element: str) -> None:
            self._work(json.loads(element), lambda count: None)

    return Work
