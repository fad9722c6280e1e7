"""The stages in flow order: ingest, train_liver, pseudo_label, assemble_pool, train_universal, evaluate, register.

Each has one `run(inputs, outputs, params)`. They never import each other; they exchange data only through files.
"""
