"""Snakemake's output for people (`snakemake --logger copra`): one line per finished job, and what runs now.

Snakemake finds this module by its name and imports it in every run, so it imports what is heavy when it is
used. The text comes from `copra.plan.watch`.
"""

import sys
from logging import WARNING, LogRecord
from typing import TYPE_CHECKING

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from copra.plan.watch import Watch

NOTHING = "Nothing to be done"
"""How the message of a run without jobs begins."""


class LogHandler(LogHandlerBase):
    """Prints a run as `Watch` tells it; on a terminal the last lines are the jobs that are running."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self._watch: Watch | None = None
        self._console: Console | None = None
        self._live: Live | None = None

    def emit(self, record: LogRecord) -> None:
        try:
            self._tell(record)
        except Exception:  # an error in what is printed ends neither the run nor what follows
            self.handleError(record)

    def _tell(self, record: LogRecord) -> None:
        event = getattr(record, "event", None)
        if self.common_settings.dryrun:
            self._default(record)
        elif event == LogEvent.WORKFLOW_STARTED:
            self.watch.configs = list(record.configfiles)  # type: ignore[attr-defined]
        elif event == LogEvent.RUN_INFO:
            self._print(self.watch.begun(record.stats))  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_INFO:
            self.watch.started(record.jobid, record.log, record.output, record.benchmark)  # type: ignore[attr-defined]
            self._follow()
        elif event == LogEvent.JOB_FINISHED:
            self._print(self.watch.finished(record.job_id))  # type: ignore[attr-defined]
        elif event == LogEvent.GROUP_ERROR:
            self._print(self.watch.failed_together(record.job_error_info))  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_ERROR:
            if record.indent:  # type: ignore[attr-defined]
                return  # a job of a group, told with that
            self._print(self.watch.failed(record.jobid, record.rule_name, record.log))  # type: ignore[attr-defined]
        elif event == LogEvent.ERROR and getattr(record, "exception", "") == "RuleException":
            pass  # the command of a failed job, of which all was told
        elif record.levelno >= WARNING or str(record.msg).startswith(NOTHING):
            self._print(str(record.msg))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
        if self._watch is not None:
            self._watch.close()
        super().close()

    @property
    def watch(self) -> "Watch":
        """The run as it was told so far."""
        if self._watch is None:
            from copra.plan.watch import Watch

            self._watch = Watch()
        return self._watch

    @property
    def console(self) -> "Console":
        if self._console is None:
            from copra.utils.terminal import console

            self._console = console(sys.stdout if self.common_settings.stdout else sys.stderr)
        return self._console

    def _print(self, text: str) -> None:
        if text:
            self.console.print(text, soft_wrap=True)

    def _follow(self) -> None:
        """Show on a terminal what is running, from the first job on."""
        if self._live is None and self.console.is_terminal:
            from rich.live import Live
            from rich.text import Text

            self._live = Live(
                get_renderable=lambda: Text(self.watch.now(), style="dim"),
                console=self.console,
                refresh_per_second=1,
                transient=True,
            )
            self._live.start()

    def _default(self, record: LogRecord) -> None:
        """Print as Snakemake does by itself: a dry run tells what it would do."""
        from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter

        settings = self.common_settings
        shown = DefaultFilter(
            settings.quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds
        )
        if shown.filter(record):
            stream = sys.stdout if settings.stdout else sys.stderr
            formatter = DefaultFormatter(settings.quiet, settings.show_failed_logs)
            ColorizingTextHandler(settings.nocolor, stream, formatter).emit(record)
