// Asks a question by gRPC and prints what the agents vote and what comes of it.
//
//	cogitate up --detach
//	buf generate ../../protos --path ../../protos/cogitate/v1   (with protoc-gen-go and protoc-gen-go-grpc)
//	go mod tidy && go run . "What is the sum of the red cards?" ../board.png
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	pb "example.com/cogitate/gen/cogitate/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func main() {
	if err := ask(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, status.Convert(err).Message())
		os.Exit(1)
	}
}

func ask(arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("usage: ask QUESTION [IMAGE…]")
	}
	var parts []*pb.Part
	for i := 1; i < len(arguments); i++ {
		data, err := os.ReadFile(arguments[i])
		if err != nil {
			return err
		}
		parts = append(parts, &pb.Part{Part: &pb.Part_Image{Image: &pb.ImagePart{Data: data}}})
	}
	parts = append(parts, &pb.Part{Part: &pb.Part_Text{Text: arguments[0]}})

	address := os.Getenv("COGITATE_ADDRESS")
	if address == "" {
		address = "127.0.0.1:7100"
	}
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer connection.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if key := os.Getenv("COGITATE_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}
	agentCount := int32(4)
	stream, err := pb.NewContemplationServiceClient(connection).Contemplate(ctx, &pb.ContemplateRequest{
		Spec: &pb.ContemplationSpec{
			Conversation: []*pb.Message{{Role: pb.Role_ROLE_USER, Parts: parts}},
			AgentCount:   &agentCount,
		},
	})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch event := response.Event.Event.(type) {
		case *pb.ContemplationEvent_BallotCast:
			ballot := event.BallotCast.Ballot
			fmt.Printf("agent %d votes: %s\n", ballot.AgentId, ballot.Answer)
		case *pb.ContemplationEvent_AgentKilled:
			fmt.Printf("agent %d is stopped\n", event.AgentKilled.Agent.AgentId)
		case *pb.ContemplationEvent_Verdict:
			fmt.Printf("\n%s\n", event.Verdict.Answer)
		case *pb.ContemplationEvent_Failed:
			return errors.New(event.Failed.Message)
		}
	}
}
