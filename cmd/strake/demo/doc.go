// Package demo is the workload that `strake up` deploys so that there is
// something to use at once: an HTTP server that names its pod, Services before
// it, and a client that calls it by name in a loop. Its images are made of the
// strake binary itself.
package demo
