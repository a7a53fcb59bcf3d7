"""One static HTML page that shows what a run did: numbers, curves, thoughts in their text."""

from rntp.report.page import build_report as build_report
