"""One HTML page that shows what the scores look like and what a keep fraction would keep."""

from shardsieve.report.page import write_report

__all__ = ["write_report"]
