"""Pictures and one page of what a run did. Importing this needs no matplotlib; drawing does (extra `plots`)."""

from llmscale.report.report import ReportPaths, loss_curve, write_report

__all__ = ["ReportPaths", "loss_curve", "write_report"]
