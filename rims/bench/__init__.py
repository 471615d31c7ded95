"""Speed and memory of RIM layers beside nn.LSTM and nn.GRU: the command ``rims bench cells``."""
