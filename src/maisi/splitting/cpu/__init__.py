"""What is about CPUs: the fastest convolution, a kernel of our own, threads, and what becomes of freed memory."""
