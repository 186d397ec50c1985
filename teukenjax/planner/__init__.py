"""What a model will do on a machine, and what limits it, before the machine is booked.

shape, remat, optimizer   what a model and a recipe demand
software, profile         what share of the hardware a program reaches; what one machine measured
plans, fabric             many plans as columns; how groups of devices lie on nodes
memory, gradients, step_time   bytes and seconds of each plan
predict, bounds           both together, what binds; closed-form limits beside them
search, inverse           the best plan; the questions asked backwards
compiled, program, oracle the same step by the real compiler, its text read, side by side
table, fit, own           published and own measurements: predicted, fitted, compared
calibrate, ablation       the devices at hand, measured
report, figures, document, command   what is printed, drawn, written; what the command line calls
"""
