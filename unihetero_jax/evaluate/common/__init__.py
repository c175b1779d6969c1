"""What several evaluators use: held-out data, scores of attributes, figures, and the report."""
