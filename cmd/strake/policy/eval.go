package policy

import (
	"errors"

	"github.com/spf13/cobra"
)

func evalCommand(s *source) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "eval",
		Short: "Tell whether a flow is allowed, and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := s.load(cmd); err != nil {
				return err
			}
			return Exit{broken, errors.New("the evaluator is not in this build")}
		},
	}
	s.flags(cmd)
	return cmd
}
