"""Small towers of our own, trained by ``unihetero towers train KIND``: one folder a kind."""
