package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// supervise keeps a node's components running until it is asked to end. Containerd goes on: it serves those who take the pods down.
func supervise(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("%d arguments, want the data folder, the strake binary and the components", len(args))
	}
	l, err := layout.New(args[0])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return supervisor.Run(ctx, l, supervisor.Components(l, args[1], args[2:]), "containerd")
}
