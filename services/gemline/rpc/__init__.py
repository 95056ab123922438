"""What every gRPC end of ours shares: conversion, the status table, interceptors, channel and server options."""
