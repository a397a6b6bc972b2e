"""Measures of ranked lists, their intervals, and tests of differences."""
