"""The built-in studies, one module per study; a module's name is the study's."""
