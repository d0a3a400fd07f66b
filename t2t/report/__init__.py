"""What came of runs, to be read: the paper's tables with our numbers in them."""
