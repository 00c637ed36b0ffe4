"""One self-contained HTML file of a run or of a paper's table: what a reviewer opens, offline."""
