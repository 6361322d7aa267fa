package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// explained has a command and all below it tell in one line what is wrong with a command line, and how it is to be: cobra alone says less, and
// takes a word that is no command for no mistake where it stands behind a group's name. kubectl speaks for itself.
func explained(cmd *cobra.Command) {
	args := cmd.Args
	if args == nil {
		args = cobra.ArbitraryArgs
	}
	switch {
	case cmd.Name() == kubectlName:
		return
	case !cmd.HasSubCommands():
		cmd.Args = func(cmd *cobra.Command, words []string) error { return withUsage(cmd, args(cmd, words)) }
	default:
		cmd.Args = func(cmd *cobra.Command, words []string) error {
			if len(words) == 0 {
				return nil
			}
			return sameExit(args(cmd, words), fmt.Errorf("%s has no command %q: `%s --help` lists them", cmd.CommandPath(), words[0], cmd.CommandPath()))
		}
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, c := range cmd.Commands() {
		explained(c)
	}
}

// withUsage adds to what is wrong with a command's words how they are to be; an exit code stays.
func withUsage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return sameExit(err, fmt.Errorf("%w; usage: %s", err, cmd.UseLine()))
}

// sameExit is said with the exit code of err, if that has one.
func sameExit(err, said error) error {
	if exit := (exitError{}); errors.As(err, &exit) {
		return exitError{exit.code, said}
	}
	return said
}

// badFlag tells where a command's flags are listed.
func badFlag(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w; `%s --help` lists its flags", err, cmd.CommandPath())
}
