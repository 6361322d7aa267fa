package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
	"github.com/strake-io/strake/controlplane/store"
)

func snapshotCommand(place places) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save and restore what the API server keeps",
		Long: `Snapshots hold everything that the API server keeps: all objects of the cluster. They don't hold the data folder's pki, without
which nobody's certificates and tokens are good for the restored cluster: keep a copy of that too, and of the keys, if what is stored is encrypted.
Secrets are in a snapshot as they are in the store.`,
	}
	cmd.AddCommand(snapshotSaveCommand(place), snapshotRestoreCommand(place), snapshotListCommand(place))
	return cmd
}

// storeOf finds the store of the node that a data folder belongs to.
func storeOf(place places) (layout.Layout, store.Config, error) {
	if os.Geteuid() != 0 {
		return layout.Layout{}, store.Config{}, errors.New("strake snapshot needs root: run it with sudo")
	}
	l, err := place()
	if err != nil {
		return l, store.Config{}, err
	}
	if !l.Made() {
		return l, store.Config{}, fmt.Errorf("%s is no data folder of Strake's: name the right one with --data-dir", l.Data)
	}
	s, _, err := cluster.Load(l)
	if err != nil {
		return l, store.Config{}, err
	}
	if s.Joined() {
		return l, store.Config{}, fmt.Errorf("%s is the folder of a node that has joined %s: the store is there", l.Data, s.APIServer)
	}
	return l, s.Store(l), nil
}

// saved is what a snapshot holds, and what is wrong with one that can't be used.
type saved struct {
	File     string    `json:"file"`
	Saved    time.Time `json:"saved"`
	Revision int64     `json:"revision,omitempty"`
	Entries  int       `json:"entries,omitempty"`
	Bytes    int64     `json:"bytes"`
	Damage   string    `json:"damage,omitempty"`
}

func snapshotSaveCommand(place places) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "save [FILE]",
		Short: "Save the store of the running control plane",
		Long:  "Writes all that the API server keeps, as it is at one moment, into a file that only root can read. The cluster goes on meanwhile. Without FILE it is put into the data folder's snapshots.",
		Example: `  strake snapshot save
  strake snapshot save /backup/monday.db
  strake snapshot save -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, cfg, err := storeOf(place)
			if err != nil {
				return err
			}
			path := filepath.Join(l.Snapshots(), time.Now().UTC().Format("20060102T150405Z")+".db")
			if len(args) > 0 {
				if path, err = filepath.Abs(args[0]); err != nil {
					return err
				}
			} else if err := os.MkdirAll(l.Snapshots(), 0o700); err != nil {
				return err
			}
			if err := enterNode(l); err != nil {
				return err
			}
			s, err := store.Save(cmd.Context(), cfg, path)
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, saved{path, time.Now().UTC().Truncate(time.Second), s.Revision, s.Keys, s.Bytes, ""}, func(w io.Writer) {
				fmt.Fprintf(w, "%s: revision %d, %d entries, %d bytes, hash verified\n", path, s.Revision, s.Keys, s.Bytes)
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func snapshotRestoreCommand(place places) *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a snapshot in the place of the stopped control plane's store",
		Long: `Verifies the snapshot and makes it the store of this control plane, which must be stopped (strake down, or systemctl stop strake-server).
The store that was there is kept beside it. The cluster's revisions go on above all that were ever given, so that no client takes an old object for a
new one; all clients list anew. Pods that the snapshot does not know are stopped by their nodes.`,
		Example: `  strake down
  strake snapshot restore /backup/monday.db
  strake up`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, cfg, err := storeOf(place)
			if err != nil {
				return err
			}
			if p, ok := supervisor.Find(l.Pid("server")); ok {
				return fmt.Errorf("the server of %s runs, as process %d: stop it first (strake down, or systemctl stop strake-server)", l.Data, p.PID)
			}
			r, err := store.Restore(cfg, args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%s is the store now: %d entries of revision %d; it goes on at revision %d.\n", args[0], r.From.Keys, r.From.Revision, r.Revision)
			if r.Old != "" {
				fmt.Fprintf(out, "The one before is kept in %s.\n", r.Old)
			}
			_, err = fmt.Fprintln(out, "Start the control plane: strake up, or systemctl start strake-server.")
			return err
		},
	}
}

func snapshotListCommand(place places) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "ls [FOLDER|FILE ...]",
		Short: "Verify and list snapshots",
		Long:  "Reads snapshots whole, compares their hashes and prints what they hold: those of the data folder's snapshots, or those that are named. It fails if one is damaged.",
		Example: `  strake snapshot ls
  strake snapshot ls /backup
  strake snapshot ls /backup/monday.db -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				l, err := place()
				if err != nil {
					return err
				}
				args = []string{l.Snapshots()}
				if _, err := os.Stat(l.Snapshots()); errors.Is(err, fs.ErrNotExist) {
					return show(cmd.OutOrStdout(), output, []saved{}, func(w io.Writer) {
						fmt.Fprintf(w, "No snapshots in %s. Make one: strake snapshot save\n", l.Snapshots())
					})
				}
			}
			list, err := verified(args)
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), output, list, func(w io.Writer) { printSnapshots(w, list) }); err != nil {
				return err
			}
			damaged := 0
			for _, s := range list {
				if s.Damage != "" {
					damaged++
				}
			}
			if damaged > 0 {
				return fmt.Errorf("%d of %d snapshots can't be used", damaged, len(list))
			}
			return nil
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// verified reads the snapshots that are named, and those of the folders that are.
func verified(places []string) ([]saved, error) {
	list := []saved{}
	for _, p := range places {
		files := []string{p}
		info, err := os.Stat(p)
		if err == nil && info.IsDir() {
			files, err = filepath.Glob(filepath.Join(p, "*.db"))
		}
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			info, err := os.Stat(f)
			if err != nil {
				return nil, err
			}
			one := saved{File: f, Saved: info.ModTime().UTC().Truncate(time.Second), Bytes: info.Size()}
			if s, err := store.Verify(f); err != nil {
				one.Damage = err.Error()
			} else {
				one.Revision, one.Entries, one.Bytes = s.Revision, s.Keys, s.Bytes
			}
			list = append(list, one)
		}
	}
	return list, nil
}

func printSnapshots(to io.Writer, list []saved) {
	w := tabwriter.NewWriter(to, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "FILE\tSAVED\tREVISION\tENTRIES\tBYTES\tHASH")
	for _, s := range list {
		if s.Damage != "" {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t%d\tdamaged: %s\n", s.File, s.Saved.Format(time.RFC3339), s.Bytes, s.Damage)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\tgood\n", s.File, s.Saved.Format(time.RFC3339), s.Revision, s.Entries, s.Bytes)
	}
	w.Flush()
}
