"""Looking at stored datasets and packed rows: numbers, histograms and pictures."""
