"""What tests of several folders share: the tiny experiment, ways to answer, and tools around copra."""
