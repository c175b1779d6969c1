"""Does the jobs of an import with Apache Beam: on this machine, or on Dataflow, Flink or Spark by Beam's own options.

The jobs are those of `write.Pool` and give the same files. They exchange them through the directory of the import, so
that and the input have to be on a file system that every worker sees.
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
        options: As on the command line, such as ``--runner=FlinkRunner``; by default Beam's direct runner.

    Raises:
        UsageError: Beam is not installed, or does not take an option.
    """

    def __init__(self, options: Sequence[str]):
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise UsageError("--beam needs Apache Beam: `pip install 'unihetero_jax[prepare]'`") from error
        try:
            self._options = PipelineOptions(list(options))
            # It looks for its runner when it is made; a slip should not wait for the input to be listed.
            apache_beam.Pipeline(options=self._options)
        except (ImportError, ValueError, SystemExit) as error:
            raise UsageError(f"Apache Beam does not take {' '.join(options)}: {error}") from error

    def __call__(
        self,
        task: pieces.Task,
        jobs: Sequence[Message],
        progress: Progress,
        done: Callable[[int, Message], None],
        inherited: Sequence[int],
    ) -> None:
        """See `write.Execute`. How far it is, Beam's own interface tells."""
        del progress, inherited
        import apache_beam

        listed = [json.dumps(job) for job in jobs]
        pipeline = apache_beam.Pipeline(options=self._options)
        _ = (
            pipeline
            | "jobs" >> apache_beam.Create(listed)
            # Else the runner would do them all in the place where they were listed.
            | "spread" >> apache_beam.Reshuffle()
            | "work" >> apache_beam.ParDo(_do_fn()(task.message()))
        )
        pipeline.run().wait_until_finish()
        for number, job in enumerate(jobs):
            result = pieces.result(task.directory, job)
            if result is None:
                raise UsageError(
                    f"Beam's workers wrote nothing that is seen here: expected {task.directory} to be on a file "
                    "system that they share with this machine"
                )
            done(number, result)


def _do_fn() -> Any:
    """The class of what Beam runs; Beam is only there where it is asked for."""
    import apache_beam

    class Work(apache_beam.DoFn):
        """Does jobs, a line of JSON each."""

        def __init__(self, opening: Message):
            self._opening = opening

        def setup(self) -> None:
            self._work = pieces.work(self._opening)

        def process(self, element: str) -> None:
            self._work(json.loads(element), lambda count: None)

    return Work
