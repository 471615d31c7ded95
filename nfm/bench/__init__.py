"""Speed and memory of NFM: the command ``rims bench nfm``."""
