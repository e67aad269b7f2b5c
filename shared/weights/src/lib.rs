//! Getting model weights onto this machine: catalogue, package client, hub, local directories.
