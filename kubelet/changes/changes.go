// Package changes hears of containers that end.
//
// A runtime that has CRI's GetContainerEvents tells it by that. containerd has
// it from 1.7 on; older ones are heard through containerd's own event service,
// on the same socket. Of a runtime with neither nothing is heard, and it has to
// be polled.
package changes

import (
	"context"
	"fmt"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	events "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// reconnect is the pause after a stream broke.
const reconnect = time.Second

// Listener is told what is heard.
type Listener struct {
	// Ended is called with the id of a container or sandbox whose process ended. The runtime's own lists may lag
	// behind by some milliseconds.
	Ended func(id string)
	// Live is called with true when a stream is open, so that nothing goes unheard, and with false when it broke.
	Live func(bool)
}

// Listen listens until ctx ends, or returns nil at once where the runtime has no events. endpoint is the runtime's,
// such as unix:///run/containerd/containerd.sock.
func Listen(ctx context.Context, runtime cri.RuntimeService, endpoint string, l Listener) error {
	sources := []func(context.Context, cri.RuntimeService, string, Listener) error{ofCRI, ofContainerd}
	for len(sources) > 0 {
		err := sources[0](ctx, runtime, endpoint, l)
		l.Live(false)
		if ctx.Err() != nil {
			return nil
		}
		if status.Code(err) == codes.Unimplemented {
			sources = sources[1:]
			continue
		}
		klog.V(2).InfoS("Events of the container runtime ended, listening again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reconnect):
		}
	}
	return nil
}

func ofCRI(ctx context.Context, runtime cri.RuntimeService, _ string, l Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := make(chan *runtimeapi.ContainerEventResponse)
	failed := make(chan error, 1)
	go func() {
		// The stream counts as open with its first event only: a runtime without the call refuses on the first read.
		failed <- runtime.GetContainerEvents(ctx, ch, nil)
	}()
	live := false
	for {
		select {
		case e := <-ch:
			if !live {
				live = true
				l.Live(true)
			}
			if t := e.ContainerEventType; t == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT || t == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
				l.Ended(e.ContainerId)
			}
		case err := <-failed:
			return fmt.Errorf("CRI events: %w", err)
		}
	}
}

// filter leaves what concerns CRI's containers: the namespace is that of containerd's CRI plugin.
const filter = `namespace==k8s.io,topic=="/tasks/exit"`

func ofContainerd(ctx context.Context, _ cri.RuntimeService, endpoint string, l Listener) error {
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("containerd events: %w", err)
	}
	defer conn.Close()
	stream, err := events.NewEventsClient(conn).Subscribe(ctx, &events.SubscribeRequest{Filters: []string{filter}})
	if err != nil {
		return fmt.Errorf("containerd events: %w", err)
	}
	// containerd sends the stream's header with the first event, so an open stream shows by no error.
	l.Live(true)
	for {
		e, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("containerd events: %w", err)
		}
		if id := ended(e.Event.GetValue()); id != "" {
			l.Ended(id)
		}
	}
}

// ended is the container whose own process an event says has ended; empty for one that was run in it beside that.
func ended(data []byte) string {
	var e apievents.TaskExit
	if proto.Unmarshal(data, &e) != nil || e.ID != e.ContainerID {
		return ""
	}
	return e.ContainerID
}
