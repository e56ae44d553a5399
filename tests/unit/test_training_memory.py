"""What a step is counted to hold is what it holds, whole and in slabs."""
