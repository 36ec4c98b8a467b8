// Package pseudoword learns words for visual concepts from a few pictures, and draws sentences with them.
//
// A word is learned by the trainer, kept in versions by the registry and drawn by the generation service:
//
//	client, err := pseudoword.New(pseudoword.Options{})
//	if err != nil { ... }
//	defer client.Close()
//	version, err := client.Learn(ctx, "rex", pictures, pseudoword.LearnOptions{Start: "dog"})
//	drawn, err := client.Draw(ctx, "a photo of <rex> on the beach", pseudoword.DrawOptions{Exact: true})
//	os.WriteFile("rex.png", drawn[0].Data, 0o644)
//
// Many pictures, drawn behind everybody else into the server's object store:
//
//	batch, err := client.CreateBatch(ctx, &generationv1.Batch{Prompts: sentences, Seeds: 4})
//	batch, err = client.AwaitBatch(ctx, batch.GetName(), nil) // batch.GetManifestUri()
//
// The zero Options are those of `pseudoword up`: three servers on loopback, tenant "default", no token.
//
// Every call takes its time-out and its cancellation from the context; cancelling Draw frees the work on the server
// within one step. Calls that a server could not take (UNAVAILABLE) are repeated a few times; all of them may safely be
// repeated, since every change carries a request id.
//
// A failed call returns an *Error:
//
//	var failure *pseudoword.Error
//	if errors.As(err, &failure) && failure.Reason == "WORD_UNKNOWN" { ... }
//
// What this package does not wrap is reached through the generated clients: [Client.Registry], [Client.Trainer] and
// [Client.Generation].
package pseudoword
