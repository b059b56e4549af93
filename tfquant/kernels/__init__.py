"""What kernels of LiteRT compute of integers; which device has which, `tfquant.devices` says."""
