"""What is printed of results: run reports, the paper's tables, contact sheets."""
