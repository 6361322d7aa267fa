package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/accounts"
)

// identities makes clients that act by ServiceAccounts of kube-system. Where err is set in the end, some of them are of no use.
type identities struct {
	ctx      context.Context
	accounts *accounts.Accounts
	clients  map[string]kubernetes.Interface // by ServiceAccount
	events   []record.EventBroadcaster
	err      error
}

func protobuf(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	return cfg
}

func (i *identities) client(account string) kubernetes.Interface {
	if c, ok := i.clients[account]; ok {
		return c
	}
	c, err := kubernetes.NewForConfig(protobuf(i.accounts.Config(account)))
	if err != nil {
		i.err, c = fmt.Errorf("controller %s: %w", account, err), kubernetes.New(nil)
	}
	i.clients[account] = c
	return c
}

func (i *identities) metadata(account string) metadata.Interface {
	c, err := metadata.NewForConfig(i.accounts.Config(account))
	if err != nil {
		i.err = fmt.Errorf("controller %s: %w", account, err)
	}
	return c
}

// recorder writes Events by an account, in the name of a component.
func (i *identities) recorder(account, component string) record.EventRecorder {
	events := record.NewBroadcaster(record.WithContext(i.ctx))
	i.events = append(i.events, events)
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: i.client(account).CoreV1().Events("")})
	return events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
}

func (i *identities) shutdown() {
	for _, e := range i.events {
		e.Shutdown()
	}
}
