"""The verbs of the command line: one module per verb, whose ``add_arguments`` declares its flags and what runs."""
