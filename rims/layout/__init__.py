"""Forms of input and state that nn.LSTM accepts: brought to one form, and back."""
