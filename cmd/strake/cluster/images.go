package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/cmd/strake/containerd"
	"github.com/strake-io/strake/cmd/strake/layout"
)

// ImportImage loads an image archive into every node on this machine, and returns the names of the images, and of the nodes that are
// elsewhere as far as the API server tells.
func ImportImage(ctx context.Context, l layout.Layout, archive string) (images, elsewhere []string, err error) {
	own, saved, err := Load(l)
	if err == nil && !saved {
		err = fmt.Errorf("there is no node in %s: run `strake up`, or name another folder with --data-dir", l.Data)
	}
	if err == nil {
		_, err = os.Stat(archive)
	}
	if err != nil {
		return nil, nil, err
	}
	here := map[string]bool{own.NodeName: true}
	places := []layout.Layout{l}
	numbers, err := l.LabNodes()
	if err != nil {
		return nil, nil, err
	}
	for _, n := range numbers {
		s, _, err := Load(l.Node(n))
		if err != nil {
			return nil, nil, err
		}
		here[s.NodeName] = true
		places = append(places, l.Node(n))
	}
	var errs []error
	for _, place := range places {
		if images, err = importInto(ctx, place, archive); err != nil {
			errs = append(errs, fmt.Errorf("node in %s: %w", place.Data, err))
		}
	}
	if err := errors.Join(errs...); err != nil || own.Joined() {
		return images, nil, err
	}
	c, err := adminClient(l)
	if err != nil {
		return images, nil, nil // there is no cluster yet: nothing is elsewhere
	}
	if nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err == nil {
		for _, n := range nodes.Items {
			if !here[n.Name] {
				elsewhere = append(elsewhere, n.Name)
			}
		}
	}
	return images, elsewhere, nil
}

// connectPatience is how long a containerd that is being started may take.
const connectPatience = 20 * time.Second

func importInto(ctx context.Context, l layout.Layout, archive string) ([]string, error) {
	soon, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	c, err := containerd.Connect(soon, l)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ImportFile(ctx, archive)
}
