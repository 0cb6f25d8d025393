"""`report.html`: one file that shows a run, several runs or a comparison; no script, nothing loaded from elsewhere."""
