"""Figures as tables, pages, plots and traces."""
