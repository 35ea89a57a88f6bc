"""Measures tidegate beside the limit program on the operator's machine: `tidegate bench`, from the wheel alone."""
