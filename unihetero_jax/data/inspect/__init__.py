"""Inspection of stored datasets and packed rows: numbers, histograms and images."""
