package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/netpol/ui"
)

func uiCommand(s *source, records Records) *cobra.Command {
	var listen, to string
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Serve a page with the matrix, its reasons, and changes to try",
		Long: `Serves a page for a browser until Ctrl-C: who reaches whom on what, and the rule behind each answer; what a changed policy would open and
close; what is wrong with the policies; on a node that records flows (strake up --record-flows) its drops as they come, and what policies in shadow would do. Nothing is changed in the cluster, which is read as the user of the kubeconfig.

The address that is printed has a token, made anew at each start: who has it sees the page. It is served without TLS, and so on loopback unless
--listen says otherwise.`,
		Example: `  strake policy ui
  strake policy ui -f manifests/
  strake policy ui --listen 127.0.0.1:8800`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serveUI(cmd, s, records, listen, to)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "address and port; port 0: any that is free")
	formats(cmd, &to, "text", "json")
	s.flags(cmd)
	return cmd
}

func serveUI(cmd *cobra.Command, s *source, records Records, listen, to string) error {
	host, _, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		return Exit{broken, fmt.Errorf("--listen %s: one address and a port, such as 127.0.0.1:8800, so that no page of another site can reach it by a name of its own", listen)}
	}
	if slices.Contains(s.files, "-") {
		return Exit{broken, errors.New("-f -: a page reads its manifests anew when it is asked to, and the standard input is there once; name a file")}
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return Exit{broken, fmt.Errorf("--listen: %w", err)}
	}
	defer l.Close()
	name := "the cluster"
	if len(s.files) > 0 {
		name = strings.Join(s.files, ", ")
	}
	read := func(context.Context) (ui.Reading, error) {
		state, err := s.load(cmd)
		loaded := s.loaded
		return ui.Reading{State: state, Where: loaded.Where}, err
	}
	server, err := ui.New(cmd.Context(), ui.Config{Source: name, Read: read, Records: records}, l.Addr())
	if err != nil {
		return err
	}
	address := fmt.Sprintf("http://%s%s", l.Addr(), server.Path())
	if to == "json" {
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"url": address})
	} else {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), address)
	}
	if err != nil {
		return Exit{broken, err}
	}
	h := &http.Server{Handler: server, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(cmd.Context(), func() { _ = h.Close() }) // nothing of a page is worth waiting for
	defer stop()
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return Exit{broken, err}
	}
	return nil
}
