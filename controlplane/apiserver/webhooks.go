package apiserver

import (
	"k8s.io/apiserver/pkg/admission"
	webhookinit "k8s.io/apiserver/pkg/admission/plugin/webhook/initializer"
	"k8s.io/apiserver/pkg/util/webhook"
)

// webhookInit tells the webhook plugins how Services are reached, and with which credentials.
type webhookInit struct {
	resolver webhook.ServiceResolver
	auth     webhook.AuthenticationInfoResolverWrapper
}

func (w webhookInit) Initialize(plugin admission.Interface) {
	if p, ok := plugin.(webhookinit.WantsServiceResolver); ok {
		p.SetServiceResolver(w.resolver)
	}
	if p, ok := plugin.(webhookinit.WantsAuthenticationInfoResolverWrapper); ok {
		p.SetAuthenticationInfoResolverWrapper(w.auth)
	}
}
